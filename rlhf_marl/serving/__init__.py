"""A trained run that answers: over HTTP, in OpenAI's format, and in a chat.

answers.py       who can be asked, and how they answer    requests.py  a chat completion's request, checked
conversation.py  a chat with scores                       replies.py   completions, chunks and errors as OpenAI's
worker.py        one thread that answers in turns         app.py       the endpoints
"""
