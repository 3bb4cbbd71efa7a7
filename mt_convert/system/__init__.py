"""What any program needs of its machine: files, processes, progress, memory. No face."""
