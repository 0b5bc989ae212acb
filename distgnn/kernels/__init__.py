"""Numba kernels: free functions of arrays and scalars. The caller allocates; argument checks live above this line."""
