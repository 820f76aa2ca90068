# The whole service in one image. `docker build .` computes on CPUs; for NVIDIA devices take PyTorch from PyPI, whose
# build brings CUDA along: `docker build --build-arg TORCH_INDEX=https://pypi.org/simple .`
ARG PYTHON_IMAGE=python:3.11.10-slim-bookworm

# what the code needs, in a layer that is built again only when the requirements change
FROM ${PYTHON_IMAGE} AS dependencies
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/bo
ENV PATH=/opt/bo/bin:$PATH
WORKDIR /build
COPY constraints.txt pyproject.toml ./
COPY deploy/requirements_of.py deploy/
# torch by itself and first, because it alone comes from another index
RUN python -m pip install --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple \
        --only-binary=:all: -c constraints.txt torch \
    && python deploy/requirements_of.py pyproject.toml otel > requirements.txt \
    && python -m pip install --only-binary=:all: -c constraints.txt -r requirements.txt "setuptools>=77"

# the code itself
FROM dependencies AS build
COPY LICENSE README.md ./
COPY bo_service bo_service
COPY migrations migrations
COPY surrogates surrogates
COPY workers workers
RUN python -m pip install --no-deps --no-build-isolation -c constraints.txt .

# what runs: an interpreter and /opt/bo, no compiler
FROM ${PYTHON_IMAGE} AS service
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bo-service" \
      org.opencontainers.image.description="A Bayesian optimization service with pluggable surrogates" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# a fixed number, so that volumes keep their owner and a cluster can see that it is not root
RUN groupadd --gid 10001 bo \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/bo-service --shell /usr/sbin/nologin bo \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/bo-service
COPY --from=build /opt/bo /opt/bo
# BO_HOME is written by a service in a single container, with SQLite; where databases are elsewhere, nothing is
ENV PATH=/opt/bo/bin:$PATH \
    BO_HOME=/var/lib/bo-service \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/bo-service
USER 10001:10001
STOPSIGNAL SIGTERM
EXPOSE 8000
ENTRYPOINT ["bo"]
CMD ["up", "--host", "0.0.0.0"]

# the service with the examples and what their objectives need
FROM service AS example
USER 0:0
COPY examples /opt/examples
RUN --mount=type=bind,target=/build \
    python /build/deploy/requirements_of.py /build/pyproject.toml examples > /tmp/requirements.txt \
    && python -m pip install --no-cache-dir --only-binary=:all: -c /build/constraints.txt -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt
ENV PYTHONPATH=/opt/examples
USER 10001:10001

# the last stage is what a plain `docker build .` makes
FROM service
