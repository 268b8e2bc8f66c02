"""Runs stateless tasks somewhere: in this process, in processes of this machine, on Dask, on any executor.

engine.py           the seam: `Engine.run(work, items)` yields an outcome per item; `Here` is this process
executor_engine.py  the same on any `concurrent.futures.Executor`; `renewable_executor.py` makes a broken one again
window.py           the tasks under way: how many, which are tried again, and who ends workers
outcomes.py         what became of an item, and which errors are the item's alone; `tally.py` counts them
per_process.py      what tasks need and is too large to travel: made once in each process
local_processes.py  an executor of processes that die alone: `worker_process.py` is one from outside,
                    `worker_main.py` from inside, `frames.py` between them
dask_cluster.py     an executor on Dask; `handshake.py` asks its workers who they are
given.py            the engine of a function whose caller may give one, an executor, or neither
where.py            `--on` in words, and the engine that it means
"""
