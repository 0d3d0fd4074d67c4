"""The room before training: options become a ResolvedRun, without data, a GPU, or memory for the model.

resolved_run.py     resolve_run: the one way from options to what will be trained; the text of a dry run
model_options.py    the family with the run's flags applied
unread.py           typed options that change nothing in this run
meta_model.py       the model without memory, and its exact counts
plugin_mixers.py    whether a mixer of a plugin sees later tokens or other documents
data_facts.py       what the data says before it is opened: vocabulary, tokenizer, end of documents
backend_checks.py   whether attention and experts have a backend for this device
memory.py           bytes on one GPU; activations.py: what a forward pass keeps
"""
