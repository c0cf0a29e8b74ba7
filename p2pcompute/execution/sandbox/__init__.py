"""Shutting workers in: namespaces, system call filters, Landlock, cgroups, and what of them works on this machine.

Nothing here is a wall by itself: each layer holds where another has a hole. What is missing is named, never assumed.
"""
