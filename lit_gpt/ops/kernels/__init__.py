"""Kernels whose files import Triton, so that its interpreter can run them: imported by name, see backends.optional."""
