"""Places that keep bytes under keys: this process's memory, Redis or Valkey."""
