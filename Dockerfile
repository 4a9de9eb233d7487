# docker build -t loraplex .                               CPU
# docker build -t loraplex --build-arg EXTRA=cuda --build-arg BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 .
# docker run -p 8000:8000 -v /path/to/bundle:/bundle:ro loraplex serve /bundle
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG EXTRA=cpu

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
RUN pip install --no-cache-dir --constraint constraints.txt ".[${EXTRA}]" && rm -rf /src/*

WORKDIR /
RUN useradd --system --no-create-home loraplex
USER loraplex
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready')"]
ENTRYPOINT ["loraplex"]
CMD ["demo"]
