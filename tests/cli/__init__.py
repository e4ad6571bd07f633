"""The command line, run as its users run it: separate processes over loopback."""
