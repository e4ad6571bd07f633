"""A network laboratory in Linux namespaces, and the tests that run anyreach in it.

The library builds real routed networks: separate stacks, real routers, real refusals by the
kernel. ``lab`` is where to begin. ``topology`` has hosts, lines and the internet, ``kinds`` what
sites can be like, ``sites`` and ``routers`` what they consist of; NATs are the kernel's
(``kernel_nat``) or a program's (``userspace_nat``, ``middlebox``), and ``emulation`` gives lines
delay and loss. What a lab does can be measured without the software under test: ``probe``,
``behaviour``, ``traffic``, ``capture``; ``truth`` tells what it allows. All that knows nothing of
anyreach; ``nodes``, ``agent`` and ``world`` are where the two meet, ``trial`` judges pairs of sites
one after the other, ``talk`` keeps one pair talking while its networks change.

``python -m tests.netlab KIND_A KIND_B`` shows what becomes of a pair by hand, ``python -m
tests.netlab.matrix`` of all pairs (``cells``).
"""
