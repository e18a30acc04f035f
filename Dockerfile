# syntax=docker/dockerfile:1
# The daemon, its sandbox and the client's command, for linux/amd64 and linux/arm64.
#
#   docker build -t milo-discoveryd:0.1.0 .
#
# By digest, since a tag moves: both stages, both platforms and whoever builds again have the same bytes. The tag says
# which line of images it is, and Renovate (renovate.json) proposes that line's next digest.
FROM python:3.13-slim-bookworm@sha256:a1165e272e578941b84abc79e4ab38a0305cd12803a5c4247979ac7655f4d641 AS python

FROM python AS build
WORKDIR /src
COPY deploy/image deploy/image
COPY pyproject.toml README.md LICENSE ./
COPY clients/python clients/python
COPY proto proto
COPY milo_discoveryd milo_discoveryd
RUN sh deploy/image/install.sh /src /opt/venv

FROM python
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
COPY --from=build /opt/venv /opt/venv
# The root may be read-only: nothing is written but the socket, where it is told to listen.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/ \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 9464
ENTRYPOINT ["milo-discoveryd"]
CMD ["run"]
