"""The channel between a `ZMQStreamer` and its worker process.

==================  ================================================================
`protocol`          every word that the two ends say to each other
`consumer`          the end of the process that iterates
`worker`            the end of the process that streams
`process`           how a worker process is started, and how it ends
`schema`            what an item may be, and how it is written down
`random_states`     the global random states that a worker starts from
`memory`, `ring`    items in memory that both ends map (Linux)
`watch`, `signals`  the end of the other process; handlers deferred for a while
==================  ================================================================
"""
