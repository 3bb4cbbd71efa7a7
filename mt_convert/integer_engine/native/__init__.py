"""The native CPU backend: its kernels, their build, and what of a program they run."""
