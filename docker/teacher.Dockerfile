# The teacher daemon. The build context is the repository:
#
#   GPU   docker build -f docker/teacher.Dockerfile -t teacher-server:cuda .
#   CPU   docker build -f docker/teacher.Dockerfile -t teacher-server:cpu \
#             --build-arg BASE=python:3.12-slim-bookworm --build-arg TORCH_INDEX_URL=URL .
#
# BASE             Debian or Ubuntu, with Python 3.11 or later or able to install it. torch's wheels bring the CUDA
#                  libraries themselves, so the CUDA base is the small one: it asks the container toolkit for the
#                  driver and refuses one that is too old. Keep it at the CUDA version of the locked torch.
# TORCH_INDEX_URL  The package index that torch alone is taken from: give the one with torch's CPU wheels to leave the
#                  CUDA libraries (several GB) out. Empty: the default index, whose wheels run on both.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04


FROM ${BASE} AS base
# hadolint ignore=DL3008  # the version is the base image's
RUN set -eu; \
    if ! command -v python3; then \
        apt-get update; \
        apt-get install -y --no-install-recommends python3; \
        rm -rf /var/lib/apt/lists/*; \
    fi; \
    useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin teacher


FROM base AS builder
# hadolint ignore=DL3008  # the version is the base image's
RUN set -eu; \
    if ! python3 -c 'import ensurepip'; then \
        apt-get update; \
        apt-get install -y --no-install-recommends python3-venv; \
        rm -rf /var/lib/apt/lists/*; \
    fi
WORKDIR /build
COPY pyproject.toml setup.py requirements.lock README.md LICENSE ./
COPY proto/ proto/
COPY shared/__init__.py shared/
# Two environments: /opt/build installs, /opt/venv is what runs. The dependencies come first, with a shell of the
# package, so that a change of code does not install torch again.
ARG TORCH_INDEX_URL=""
RUN --mount=type=cache,target=/root/.cache/pip set -eu; \
    python3 -m venv /opt/build; \
    python3 -m venv --without-pip /opt/venv; \
    if [ -n "${TORCH_INDEX_URL}" ]; then \
        /opt/build/bin/pip --python /opt/venv install -c requirements.lock --no-deps --index-url "${TORCH_INDEX_URL}" torch; \
    fi; \
    /opt/build/bin/pip --python /opt/venv install -c requirements.lock '.[teacher,tracing]'
COPY shared/ shared/
COPY teacher_server/ teacher_server/
# The project is one distribution with two commands; this image holds the code of one.
RUN --mount=type=cache,target=/root/.cache/pip set -eu; \
    /opt/build/bin/pip --python /opt/venv install --no-deps --force-reinstall .; \
    rm /opt/venv/bin/student-trainer
# What numba would compile at each container's first start, for tens of seconds: for every processor of the architecture.
RUN NUMBA_CACHE_DIR=/opt/numba NUMBA_CPU_NAME=generic /opt/venv/bin/python -P -m teacher_server.precompile


FROM base AS runtime
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="teacher-server" \
      org.opencontainers.image.description="LM-TAD teacher behind gRPC for distillation" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=builder /opt/venv /opt/venv
COPY --from=builder /opt/numba /opt/numba
RUN install --directory --owner=teacher --group=teacher /models /data
ENV PATH="/opt/venv/bin:${PATH}" \
    PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/opt/numba \
    NUMBA_CPU_NAME=generic
USER 10001:10001
WORKDIR /home/teacher
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
# Over HTTP, which needs no certificates, whatever callers must show.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "teacher_server.client.healthcheck", "http://127.0.0.1:9464"]
ENTRYPOINT ["teacher-server"]
CMD ["serve", "--teacher", "/models/teacher.safetensors", "--listen", "0.0.0.0:50051", "--insecure", "--metrics-listen", "0.0.0.0:9464"]
