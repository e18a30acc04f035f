# syntax=docker/dockerfile:1
# Images for linux/amd64 and linux/arm64:
#
#   docker build -t milo-discoveryd:0.1.0 .                                    the daemon and the client's command
#   docker build --target sandbox -t milo-discoveryd-sandbox:0.1.0 .           the same with the sandbox, for the demo
#
# The base image is pinned by digest, since a tag moves. Renovate (renovate.json) proposes the tag's next digest.
FROM python:3.13-slim-bookworm@sha256:a1165e272e578941b84abc79e4ab38a0305cd12803a5c4247979ac7655f4d641 AS python

FROM python AS sources
WORKDIR /src
COPY deploy/image deploy/image
COPY requirements requirements
COPY pyproject.toml README.md LICENSE ./
COPY clients/python clients/python
COPY clients/cli clients/cli
COPY controllers controllers
COPY objects objects
COPY publishing publishing
COPY kube kube
COPY proto proto
COPY milo_discoveryd milo_discoveryd

FROM sources AS install-daemon
RUN sh deploy/image/install.sh /src /opt/venv

FROM sources AS install-sandbox
COPY sandbox sandbox
RUN sh deploy/image/install.sh /src /opt/venv sandbox

FROM python AS runtime
ARG VERSION=0.1.0
ARG GIT_COMMIT=unknown
ARG BUILD_DATE=unknown
LABEL org.opencontainers.image.title="milo-discoveryd" \
      org.opencontainers.image.description="Discovers Milo project control planes and streams them to operators in any language." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/milo-os/milo-discoveryd" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${GIT_COMMIT}" \
      org.opencontainers.image.created="${BUILD_DATE}"
# The root file system may be read-only: the daemon writes only its socket and, with state_directory, its state file.
# PYTHONMALLOC: Python's own allocator keeps 16 KiB for one size of objects as long as one of them lives, so that whoever
# chooses sizes, as those of labels, could exhaust the memory.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/ \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONMALLOC=malloc \
    PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 9464
ENTRYPOINT ["milo-discoveryd"]

FROM runtime AS sandbox
COPY --from=install-sandbox /opt/venv /opt/venv
CMD ["sandbox"]

# The last stage is the default target.
FROM runtime AS daemon
COPY --from=install-daemon /opt/venv /opt/venv
CMD ["run"]
