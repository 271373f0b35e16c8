"""Files: lookup, atomic writes, JSON Lines, YAML, hashes, and user data.

locate.py     where data files live          atomic.py     atomic, fsynced writes, folder locks
jsonl.py      JSON Lines                     user_data.py  users' prompts and preference pairs
yaml_files.py bounded YAML                   functions.py  Python functions named in configs and cards
json_files.py whole JSON files               hashing.py    digests of files
"""
