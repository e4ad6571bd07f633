"""A network laboratory in Linux namespaces, and the tests that run anyreach in it.

The library (``lab``, ``topology``, ``namespaces``, ``process``, ``probe``, ``reaper``) builds
real routed networks: separate stacks, real routers, real refusals by the kernel. It knows
nothing of anyreach; ``nodes`` is where the two meet. It does not emulate delay or loss, and it
translates no addresses. ``python -m tests.netlab`` lists what is up and cleans up.
"""
