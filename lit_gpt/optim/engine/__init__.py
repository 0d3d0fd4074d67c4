"""What optimizers are made of.

| file | what it does |
|---|---|
| reference.py | every native optimizer in plain numpy: read it first |
| directions.py, updates.py | where to go, and how far: the two parts of an update rule |
| rules.py | update rules that several optimizers share |
| matrix_batches.py | matrices of one shape together, made whole where weights are sharded |
| packed.py | state in 8 bits |
| adamw_triton.py | AdamW's step by kernels of our own |
| role_optimizer.py | the optimizer over role groups that runs the rules |
| external.py, libraries.py | optimizers of other libraries: the table, the wrapper |
| library_state_size.py | what those keep between steps |
| state_tree.py, trial.py | a library's state as flat tensors; steps on small weights before a run starts |
| groups.py, state_size.py, protocol.py | what the rest of the house asks: groups, bytes, hooks of the loop |
"""
