"""The language-model side of an actor.

loading.py       models by reference            chat.py               chat templates, stop tokens, padding
adapters.py      stacked LoRA                   mkl_linear.py         fast linear layers on CPUs
prefix_cache.py  prefill, shared prefixes       generation.py         batched sampling
sampler.py       the Sampler protocol           log_probabilities.py  log π, entropy, KL and gradients
instructions.py  prompt templates of tasks
"""
