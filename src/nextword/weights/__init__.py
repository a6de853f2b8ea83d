"""Reading and writing weights: catalogue, hub, safetensors folders, GGUF files."""
