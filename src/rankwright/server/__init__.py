"""HTTP over rankers: requests of many clients share the model's batches.

``batcher`` merges, ``scorer`` is a ranker in the two steps that the batcher calls, ``schemas`` are
the bodies of each client's form, ``app`` the endpoints, ``gate`` what every request passes before
them, ``telemetry`` the figures, ``runner`` sockets and signals, ``page.html`` the page at ``/``.
"""
