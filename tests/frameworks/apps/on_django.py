"""The conformance app on Django; it knows neither lifespan nor WebSocket, and cannot mount ASGI apps."""

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import include, path

from nexcache import CacheMiddleware
from tests.frameworks.apps import shared

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[],
    SECRET_KEY="for tests only",
    USE_TZ=True,
)
django.setup()


def run_of(request: HttpRequest) -> str:
    return str(request.GET.get("run", ""))


async def dashboard(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        return JsonResponse(shared.compute(run_of(request)) | {"body": request.body.decode()})
    response = JsonResponse(shared.compute(run_of(request)))
    for name, value in shared.PARTS:
        response[name] = f"{response[name]}, {value}" if name in response else value  # a dict: one field per name
    return response


async def service(_request: HttpRequest, service: str) -> HttpResponse:
    return JsonResponse(shared.compute(service))


async def cookies(request: HttpRequest) -> HttpResponse:
    response = JsonResponse(shared.compute(run_of(request)))
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


async def stream(request: HttpRequest) -> HttpResponseBase:
    return StreamingHttpResponse(shared.stream(run_of(request)), content_type="text/plain")


async def endless(request: HttpRequest) -> HttpResponseBase:
    return StreamingHttpResponse(shared.endless(run_of(request)), content_type="text/plain")


async def fail(request: HttpRequest) -> HttpResponse:
    shared.compute(run_of(request))
    raise LookupError("as the test wants it")


async def report(request: HttpRequest) -> HttpResponse:
    if not shared.is_known(request.headers.get("authorization")):
        return JsonResponse({"detail": "who are you?"}, status=401)
    return JsonResponse(shared.compute(run_of(request)))


async def state(request: HttpRequest) -> HttpResponse:
    return JsonResponse(shared.state_of(run_of(request)))


async def gate(request: HttpRequest) -> HttpResponse:
    shared.runs[run_of(request)].gate.set()
    return JsonResponse({})


async def invalidate(request: HttpRequest) -> HttpResponse:
    return JsonResponse(await shared.invalidate(request.GET["tenant"]))


routes = [
    path("dashboard", dashboard),
    path("services/<str:service>", service),
    path("cookies", cookies),
    path("stream", stream),
    path("endless", endless),
    path("fail", fail),
    path("report", report),
]
urlpatterns = [
    path("api/", include(routes)),
    path("bare/", include(routes)),
    path("state", state),
    path("gate", gate),
    path("invalidate", invalidate),
]

cached = CacheMiddleware(
    get_asgi_application(),
    cache=shared.cache,
    tenant=shared.keys,
    principal=shared.principal,
    policies=[*shared.POLICIES, shared.REPORT],
)
app = shared.beside(cached, {"/v1": shared.traces, "/cache": shared.admin})
