# docker build -t loraplex .                               CPU
# docker build -t loraplex --build-arg EXTRA=cuda --build-arg BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 .
# docker run -p 8000:8000 -v /path/to/bundle:/bundle:ro loraplex serve /bundle
ARG BASE=python:3.12-slim
ARG EXTRA=cpu

# The operators, so that the image needs no compiler: of the batched lane for AVX2 and AVX-512, or of the routed lane for
# every GPU from A100 and RTX 30 on. Of these stages one is built.
FROM python:3.12-slim AS operator-cpu
COPY server/engine/kernels /kernels
RUN mkdir /operator && if [ "$(uname -m)" = x86_64 ]; then \
    apt-get update && apt-get install -y --no-install-recommends g++ && \
    g++ -O3 -std=c++17 -shared -fPIC -fvisibility=hidden -mavx2 -mfma -mf16c \
    -o /operator/liblinear-avx2.so /kernels/linear.cpp && \
    g++ -O3 -std=c++17 -shared -fPIC -fvisibility=hidden -mavx2 -mfma -mf16c \
    -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -o /operator/liblinear-avx512.so /kernels/linear.cpp; fi

FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS operator-cuda
COPY server/engine/kernels /kernels
RUN mkdir /operator && nvcc -O3 -std=c++17 -shared -Xcompiler=-fPIC,-fvisibility=hidden \
    -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_86,code=sm_86 -gencode=arch=compute_89,code=sm_89 \
    -gencode=arch=compute_90,code=sm_90 -gencode=arch=compute_100,code=sm_100 -gencode=arch=compute_120,code=sm_120 \
    -gencode=arch=compute_120,code=compute_120 -o /operator/liblora.so /kernels/lora.cu

FROM operator-${EXTRA} AS operator

FROM ${BASE}
ARG EXTRA

# The CUDA images come without Python.
RUN command -v python3 >/dev/null || \
    (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/loraplex
ENV PATH=/opt/loraplex/bin:$PATH LORAPLEX_HOST=0.0.0.0

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY server server
COPY build build
COPY bench bench
COPY adapters adapters
COPY --from=operator /operator /operator
RUN pip install --no-cache-dir --constraint constraints.txt ".[${EXTRA}]" && cd / && rm -rf /src && \
    find /operator -name '*.so' -exec cp {} \
    "$(python3 -c 'from loraplex.server.engine.lora_operator import SOURCES; print(SOURCES)')" \;

WORKDIR /
# With a home, which takes the caches where the bundle is mounted read-only.
RUN useradd --system --create-home loraplex
USER loraplex
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready')"]
ENTRYPOINT ["loraplex"]
CMD ["demo"]
