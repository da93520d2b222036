"""The process that starts one task, contains everything the task starts, and writes down how it ended.

It is a session of its own and outlives the mesh. Nothing beyond the standard library is imported here, and little of
that: a supervisor has to be there within some milliseconds and stays for as long as its task runs.
"""
