# syntax=docker/dockerfile:1
# lrls with torch for the CPU:     docker build -t lrls .
# with torch for CUDA 13.0:        docker build -t lrls:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# Run:  docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" lrls run lrls.yaml --budget 30m
# with a GPU: add --gpus all. CUDA's libraries come with torch; the host needs NVIDIA's driver and container toolkit.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python -m venv /opt/lrls \
    && /opt/lrls/bin/pip install --index-url "${TORCH_INDEX}" -c constraints.txt torch
COPY lrls_cli lrls_cli
COPY stages stages
RUN /opt/lrls/bin/pip install -c constraints.txt ".[onnx]"

FROM python:${PYTHON}-slim-bookworm
COPY --from=build /opt/lrls /opt/lrls
# Any user may run it: what libraries want to keep in a home folder goes to /tmp.
ENV PATH=/opt/lrls/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --no-create-home --shell /usr/sbin/nologin lrls
USER 1000
WORKDIR /data
ENTRYPOINT ["lrls"]
CMD ["--help"]
