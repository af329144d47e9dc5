"""The commands, a file each: ``types()`` are its arguments, ``run(words)`` does it."""
