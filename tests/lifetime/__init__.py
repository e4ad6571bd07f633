"""What a program may do to its tasks, loops, threads and processes without anyreach minding."""
