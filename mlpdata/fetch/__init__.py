"""Bytes from elsewhere to here: HTTP, downloads, the authors' archives, the Hugging Face Hub."""
