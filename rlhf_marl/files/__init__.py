"""Files: lookup, atomic writes, JSON Lines, YAML, hashes, and what users hand in.

locate.py     where data files live          atomic.py     atomic, fsynced writes, folder locks
jsonl.py      JSON Lines                     user_data.py  prompts and pairs that users hand in
yaml_files.py bounded YAML                   functions.py  Python functions named in configs and cards
"""
