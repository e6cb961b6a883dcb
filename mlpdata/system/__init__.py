"""What the machine offers: files, disk, memory, threads, processes, a progress line."""
