# The serving image: no torch, no compiler, not root. Built by `make image BASE=python:3.11-slim@sha256:…`.
#
# BASE is a Debian image with Python 3.11 or later, pinned by its digest. No digest stands here, because one that was
# not looked up where you trust it pins nothing: `docker buildx imagetools inspect python:3.11-slim` prints it.
ARG BASE

FROM ${BASE} AS build
ARG BASE
RUN case "${BASE}" in *@sha256:????????????????????????????????????????????????????????????????) ;; *) \
      echo "BASE: give an image by its digest, NAME@sha256:…" >&2; exit 1;; esac
# s3fs, gcsfs, adlfs: clients for the URLs that models are fetched from.
ARG EXTRAS=grpc,otel,redis,remote
ARG CLIENTS=""
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY energy energy
COPY models models
COPY server server
COPY compile compile
COPY loadtest loadtest
RUN python3 -m venv /opt/jouleserve
RUN /opt/jouleserve/bin/python -m pip --disable-pip-version-check install --no-cache-dir \
      --constraint requirements.lock ".[${EXTRAS}]" ${CLIENTS}
# What must not be in it, and what must.
RUN /opt/jouleserve/bin/python -c "import importlib.util as u, sys; found = [n for n in ('torch', 'transformers', 'onnx') if u.find_spec(n)]; sys.exit(f'in the image: {found}' if found else 0)"
RUN /opt/jouleserve/bin/jouleserve config > /dev/null && /opt/jouleserve/bin/ray --version

FROM ${BASE}
# KubeRay's probes call wget.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/jouleserve /opt/jouleserve
RUN groupadd --gid 10001 jouleserve && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp jouleserve
ENV PATH=/opt/jouleserve/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000 9400
ENTRYPOINT ["jouleserve"]
CMD ["up", "--set", "server.host=0.0.0.0"]
