"""The demo: a small observability back end over SQLite, its instrumented services, its readers, and a checker.

`shop` imagines the traffic; `database` keeps spans and `queries` answers from them; `backend` is the app without
a cache and `app` mounts NexCache in front of it; `services` send spans through the OpenTelemetry SDK; `readers`
read over HTTP and `checks` judges every answer; `run` puts them together and `display` shows it.
"""
