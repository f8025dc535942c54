"""The Hugging Face Hub: names → files, headers before the download, the download itself."""
