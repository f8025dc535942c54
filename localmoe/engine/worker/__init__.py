"""The worker process, the only importer of llama.cpp and ggml: started, imported by nobody."""
