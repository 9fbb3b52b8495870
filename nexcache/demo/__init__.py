"""The demo: a small observability back end over SQLite, its instrumented services, its readers, and a checker.

`shop` imagines the traffic and `history` the hours before; `database` keeps spans, `queries` answers from them;
`backend` is the app without a cache, `app` mounts NexCache in front of it. `services` send spans through the
OpenTelemetry SDK, `readers` read over HTTP, `checks` judges every answer, and `crowd` is all of them at once. `run`
puts it together on an embedded `valkey`, `board` holds what is known, `display` shows it, `verdict` judges the run.
"""
