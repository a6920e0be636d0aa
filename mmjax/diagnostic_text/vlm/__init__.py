"""Clients of servers with vision-language models: Ollama, and OpenAI-compatible ones."""
