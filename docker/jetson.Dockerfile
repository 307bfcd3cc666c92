# TensorRT on a Jetson with JetPack 7. TensorRT, its Python bindings and CUDA are those of the base.
# See docs/how-to/containers.md.
ARG BASE=nvcr.io/nvidia/tensorrt:25.11-py3

FROM python:3.12.12-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
COPY constraints.txt /tmp/constraints.txt
# Without the extra: it would bring a TensorRT that is not for Jetson. The environment sees the
# packages of the base, and installs beside them.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m venv --system-site-packages /opt/mimiq \
    && /opt/mimiq/bin/pip install --no-cache-dir --constraint /tmp/constraints.txt \
        /wheels/*.whl "polygraphy>=0.49.20" "cuda-python>=12.8" \
    && /opt/mimiq/bin/python -c "import tensorrt" \
    && useradd --no-log-init --uid 10001 --create-home --groups video runner
ENV PATH=/opt/mimiq/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /data
ENTRYPOINT ["mimiq-deploy"]
CMD ["doctor"]
