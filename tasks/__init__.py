"""The steps of a run as Prefect tasks: one file a step; each calls the agent, records, returns.

What they record are artifacts for people. The proof comes from the agent alone: nothing here can
add to it, and losing a server or a worker loses no part of it. Tasks take and return plain values
(names, digests, paths), never a client, and none is ever cached: a measurement is made anew.
"""
