"""Services over HTTP: http.py bounded requests, endpoint.py OpenAI-compatible chat, journal.py recorded answers."""
