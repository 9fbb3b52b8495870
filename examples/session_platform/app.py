"""The session platform: `uvicorn examples.session_platform.app:app`; as many of them as one likes, behind one Redis."""

import os
from typing import Any, Final, cast

from quart import Quart, abort, jsonify, request
from quart.typing import ResponseReturnValue

from nexcache import NexCache, RateLimitMiddleware, SessionMiddleware, tenants
from nexcache.asgi import ASGIApp, Scope
from nexcache.session_middleware import RequestSession
from nexcache.values import NotANumber, Values

PLATFORM: Final = "platform"
cache = NexCache.from_env(default_tenant=PLATFORM)
ENCRYPTED: Final = bool(cache.settings.encryption_keys)
sessions = cache.sessions(
    ttl=os.environ.get("SESSION_TTL", "1h"),
    max_age=os.environ.get("SESSION_MAX_AGE", "7d"),
    when_away="memory",
    encrypted=ENCRYPTED,
)


def caller(scope: Scope) -> str:
    """Say whom a request counts for: a user, or an address before a login."""
    user = scope["session"].user
    return f"user:{user}" if user is not None else f"address:{(scope.get('client') or ('',))[0]}"


app = Quart(__name__)
limited = RateLimitMiddleware(
    cast("ASGIApp", app.asgi_app),
    cache=cache,
    limit="100/minute",
    tenant=tenants.fixed(PLATFORM),
    by=caller,
    paths=["/me", "/me/{rest:path}"],
)
secure = os.environ.get("SESSION_SECURE", "true") == "true"
app.asgi_app = SessionMiddleware(limited, sessions=sessions, secure=secure)  # type: ignore[assignment, method-assign]


@app.before_serving
async def start() -> None:
    await cache.start()


@app.after_serving
async def stop() -> None:
    await cache.aclose()


def session() -> RequestSession:
    found: RequestSession = request.scope["session"]  # type: ignore[typeddict-item]
    return found


def current_user() -> str:
    user = session().user
    if user is None:
        abort(401)
    return user


def values() -> Values:
    """Return the values of the current user."""
    return cache.tenant(current_user(), when_away="memory", encrypted=ENCRYPTED)


@app.post("/login/<user>")
async def login(user: str) -> ResponseReturnValue:  # a real one would ask for more than a name
    if not tenants.is_valid_id(user):
        abort(400)
    session().login(user)
    return jsonify(user=user)


@app.post("/logout")
async def logout() -> ResponseReturnValue:
    session().end()
    return "", 204


@app.post("/logout/everywhere")
async def logout_everywhere() -> ResponseReturnValue:
    await sessions.revoke(current_user())
    session().end()
    return "", 204


@app.get("/me")
async def me() -> ResponseReturnValue:
    return jsonify(user=current_user(), data=dict(session()))


@app.put("/me")
async def update() -> ResponseReturnValue:
    current_user()
    session().update(await request.get_json())
    return jsonify(dict(session()))


@app.get("/me/values/<name>")
async def get(name: str) -> ResponseReturnValue:
    if not await values().exists(name):
        abort(404)
    return jsonify(await values().get(name))


@app.put("/me/values/<name>")
async def put(name: str) -> ResponseReturnValue:
    await values().set(name, await request.get_json(), request.args.get("expiry"))  # no expiry: kept
    return "", 204


@app.delete("/me/values/<name>")
async def delete(name: str) -> ResponseReturnValue:
    return jsonify(await values().delete(name))


@app.post("/me/values/<name>/increment")
async def increment(name: str) -> ResponseReturnValue:
    try:
        return jsonify(await values().increment(name, request.args.get("by", 1, int)))
    except NotANumber:
        abort(409)


@app.post("/me/values/<name>/expire")
async def expire(name: str) -> ResponseReturnValue:
    return jsonify(await values().expire(name, request.args.get("expiry")))


@app.post("/me/values")
async def batch() -> ResponseReturnValue:
    """Write several values and read them back: one round trip."""
    given: dict[str, Any] = await request.get_json()
    async with values().pipeline() as pipeline:
        for name, value in given.items():
            pipeline.set(name, value)
        found = {name: pipeline.get(name) for name in given}
    return jsonify({name: pending.value for name, pending in found.items()})


@app.get("/ready")
async def ready() -> ResponseReturnValue:
    """Say that the replica can be used: without Redis too, in this process's memory."""
    store = await cache.health()
    mode = store.mode if store.available else "memory"
    return jsonify(status="healthy", mode=mode, connections=store.connections, commands=store.commands)
