# One image for every process of Vedette; the command says which. No compiler, no Java, no Redis in it.
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/vedette
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY attacks attacks
COPY detectors detectors
COPY streams streams
RUN /opt/vedette/bin/pip install --no-cache-dir -c constraints.txt '.[onnx]'

FROM python:3.11-slim
ENV PATH=/opt/vedette/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/var/cache/vedette \
    VEDETTE_CONFIG=/etc/vedette/vedette.toml
RUN groupadd --gid 1000 vedette \
    && useradd --uid 1000 --gid vedette --no-create-home --home-dir /nonexistent vedette \
    && install -d -o vedette -g vedette -m 1777 /var/cache/vedette
COPY --from=build /opt/vedette /opt/vedette
USER vedette
# Kernels are compiled once, here, instead of at every start of a container. Whoever runs it may add to them.
RUN python -c "from detectors.kernels import warm_up; warm_up()" && chmod -R a+rwX /var/cache/vedette
VOLUME /var/cache/vedette
ENTRYPOINT ["vedette"]
CMD ["--help"]
