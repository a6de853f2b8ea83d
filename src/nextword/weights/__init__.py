"""Where weights come from and go to: catalogue, hub, safetensors folders, GGUF files."""
