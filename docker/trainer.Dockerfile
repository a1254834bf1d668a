# The student's jobs: prepare, train, predict, demo-city. The build context is the repository:
#
#   GPU   docker build -f docker/trainer.Dockerfile -t student-trainer:cuda .
#   CPU   docker build -f docker/trainer.Dockerfile -t student-trainer:cpu \
#             --build-arg BASE=python:3.12-slim-bookworm --build-arg TORCH_INDEX_URL=URL .
#
# BASE and TORCH_INDEX_URL mean what they mean in teacher.Dockerfile.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04


FROM ${BASE} AS base
# hadolint ignore=DL3008  # the version is the base image's
RUN set -eu; \
    if ! command -v python3; then \
        apt-get update; \
        apt-get install -y --no-install-recommends python3; \
        rm -rf /var/lib/apt/lists/*; \
    fi; \
    useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin trainer


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
    /opt/build/bin/pip --python /opt/venv install -c requirements.lock '.[convert,report,tracing,trainer,tune,wandb]'
COPY shared/ shared/
COPY student_trainer/ student_trainer/
# The project is one distribution with two commands; this image holds the code of one.
RUN --mount=type=cache,target=/root/.cache/pip set -eu; \
    /opt/build/bin/pip --python /opt/venv install --no-deps --force-reinstall .; \
    rm /opt/venv/bin/teacher-server


FROM base AS runtime
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="student-trainer" \
      org.opencontainers.image.description="HOSER student trained with a remote LM-TAD teacher" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=builder /opt/venv /opt/venv
RUN install --directory --owner=trainer --group=trainer /data /runs
ENV PATH="/opt/venv/bin:${PATH}" \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /runs
STOPSIGNAL SIGTERM
# A job is judged by its exit code; there is nothing to probe while it runs.
HEALTHCHECK NONE
ENTRYPOINT ["student-trainer"]
CMD ["--help"]
