FROM scratch
ENTRYPOINT []
ENTRYPOINT
ONBUILD ENTRYPOINT []
ENTRYPOINT ["a",]
CMD [1]
SHELL ["/bin/sh", "-c"] # not JSON
CMD [ \
  # a comment

  "a", \
  "b" ]
VOLUME ["/a"] # not JSON
USER a b
LABEL a="<<EOF"
COPY [ <<A /b
RUN --mount=type=cache,target=/root/.m2 mvn
A
RUN --mount=type=cache,target=/root/.m2 mvn
EN\
TRYPOINT [ ]
RUN --mount=type=cache,target=/root/.m2 mvn
