"""Plan a run before anybody rents a GPU: memory, FLOPs, hours and disk of every stage, traced without weights.

architectures.py   what a model is made of: published configurations, or the config.json files of a folder
fake_model.py      the pipeline on tensors that have shapes and no values, behind the product's own adapter
tracing.py         measure peak memory and FLOPs of what runs on such tensors
stages.py          the stages of a run, each traced through the product's own code
workload.py        what a run asks for: numbers of videos and steps; what it leaves on disk
cards.py           GPUs by name or size
forecast.py        everything about a run, as a dataclass with JSON and text
remedies.py        the settings that make a run fit a card, in the order in which they are tried
"""
