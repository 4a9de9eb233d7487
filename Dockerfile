# docker build -t loraplex .                               CPU
# docker build -t loraplex --build-arg EXTRA=cuda --build-arg BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 .
# docker run -p 8000:8000 -v /path/to/bundle:/bundle:ro loraplex serve /bundle      (docs/docker.md)
ARG BASE=python:3.12-slim
ARG EXTRA=cpu

# The operators, so that the image needs no compiler: of the batched lane for AVX2 and AVX-512, or of the routed lane
# for every GPU from A100 and RTX 30 on. Of these stages one is built.
FROM python:3.12-slim AS operator-cpu
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /operator
COPY server/engine/linear_operator.py /
COPY server/engine/kernels /kernels
RUN if [ "$(uname -m)" = x86_64 ]; then PYTHONPATH=/ python3 -c "\
from linear_operator import *; \
[compile_linear_operator('g++', Path('/tmp'), name).rename(PREBUILT.format(name)) for name in INSTRUCTION_SETS]"; fi

FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS operator-cuda
WORKDIR /operator
COPY server/engine/kernels /kernels
RUN nvcc -O3 -std=c++17 -shared -Xcompiler=-fPIC,-fvisibility=hidden \
    -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_86,code=sm_86 -gencode=arch=compute_89,code=sm_89 \
    -gencode=arch=compute_90,code=sm_90 -gencode=arch=compute_100,code=sm_100 -gencode=arch=compute_120,code=sm_120 \
    -gencode=arch=compute_120,code=compute_120 -o liblora.so /kernels/lora.cu

FROM operator-${EXTRA} AS operator

# What loraplex needs, as a file that changes only when this does: a change of source then installs nothing anew.
FROM python:3.12-slim AS requirements
ARG EXTRA
COPY pyproject.toml /
RUN python3 -c "import tomllib; project = tomllib.load(open('/pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
print(*project['dependencies'], *extras['${EXTRA}'], *extras['otel'], sep='\n')" > /requirements.txt

FROM python:3.12-slim AS package
WORKDIR /src
COPY constraints.txt ./
RUN pip3 install --no-cache-dir --constraint constraints.txt setuptools
COPY pyproject.toml README.md LICENSE ./
COPY adapters adapters
COPY bench bench
COPY build build
COPY server server
RUN pip3 wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel .

FROM ${BASE}
# The CUDA images come without Python.
RUN command -v python3 >/dev/null || \
    (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/loraplex
ENV PATH=/opt/loraplex/bin:$PATH LORAPLEX_HOST=0.0.0.0

# By number, as Kubernetes wants to see that it is not root. With a home, which takes the caches where the bundle is
# mounted read-only; these folders are there so that a volume mounted on one belongs to this user.
RUN useradd --uid 10001 --create-home loraplex && \
    install -d -o loraplex -g loraplex /home/loraplex/.cache /var/lib/loraplex

RUN --mount=type=bind,from=requirements,source=/requirements.txt,target=/mnt/requirements.txt \
    --mount=type=bind,source=constraints.txt,target=/mnt/constraints.txt \
    pip install --no-cache-dir --constraint /mnt/constraints.txt --requirement /mnt/requirements.txt
RUN --mount=type=bind,from=package,source=/wheel,target=/mnt/wheel \
    --mount=type=bind,from=operator,source=/operator,target=/mnt/operator \
    pip install --no-cache-dir --no-deps /mnt/wheel/*.whl && find /mnt/operator -name '*.so' -exec cp {} \
    "$(python3 -c 'from loraplex.server.engine.lora_operator import SOURCES; print(SOURCES)')" \;

LABEL org.opencontainers.image.title="loraplex" \
    org.opencontainers.image.description="Multi-LoRA inference server on ONNX Runtime GenAI" \
    org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Not /ready: an engine that the server itself is starting again is no reason to start the container again.
HEALTHCHECK --interval=15s --timeout=10s --start-period=5m CMD ["python3", "-m", "loraplex.server.probe"]
ENTRYPOINT ["loraplex"]
CMD ["demo"]
