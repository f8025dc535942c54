"""llama.cpp behind a worker process. The only importer of ``llama_cpp``."""
