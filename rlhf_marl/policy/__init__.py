"""The language-model side of an actor.

references.py    hub ids, folders, packages     loading.py            models and tokenizers
chat.py          chat templates, stop tokens    padding.py            padded batches
adapters.py      stacked LoRA                   half_linear.py        fast linear layers on CPUs
prefix_cache.py  prefill, shared prefixes       generation.py         batched sampling
sampler.py       the Sampler protocol           log_probabilities.py  log π, entropy, KL and gradients
instructions.py  prompt templates of tasks      decoder.py            straight-line decoding on GPUs
llama_like.py    layers of Llama-like models    straight_step.py      straight-line decode steps on CPUs
"""
