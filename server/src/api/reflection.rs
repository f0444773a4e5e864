//! Server reflection (grpc.reflection.v1 and v1alpha): the descriptors as they were compiled, with the options that say how each
//! operation behaves.

use std::sync::{Arc, LazyLock};

use prost_reflect::{DescriptorError, DescriptorPool, FileDescriptor};
use tokio_stream::StreamExt as _;
use tonic::Code;

/// Everything that Trefoil says; read when somebody asks first, since it takes some MiB.
static DESCRIBED: LazyLock<Result<DescriptorPool, DescriptorError>> = LazyLock::new(|| {
    let mut pool = DescriptorPool::new();
    for descriptors in [
        trefoil_proto::DESCRIPTORS,
        trefoil_proto::status::DETAIL_DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ] {
        pool.decode_file_descriptor_set(descriptors)?;
    }
    Ok(pool)
});

/// Lists services, and describes everything.
#[derive(Clone, Debug)]
pub(super) struct Reflection {
    services: Arc<[String]>,
}

/// What is described.
struct Described<'a> {
    pool: &'a DescriptorPool,
}

impl Reflection {
    /// Lists these services.
    pub(super) fn new(services: impl Iterator<Item = &'static str>) -> Self {
        Self { services: services.map(str::to_owned).collect() }
    }
}

impl Described<'_> {
    /// The file with a message, an enum, a service or an extension, or with a part of one.
    fn file_of(&self, symbol: &str) -> Option<FileDescriptor> {
        let pool = self.pool;
        let whole = |name: &str| {
            let message = pool.get_message_by_name(name).map(|it| it.parent_file());
            message
                .or_else(|| pool.get_service_by_name(name).map(|it| it.parent_file()))
                .or_else(|| pool.get_enum_by_name(name).map(|it| it.parent_file()))
                .or_else(|| pool.get_extension_by_name(name).map(|it| it.parent_file()))
        };
        whole(symbol).or_else(|| whole(symbol.rsplit_once('.')?.0))
    }

    fn file_of_extension(&self, message: &str, number: i32) -> Option<FileDescriptor> {
        let message = self.pool.get_message_by_name(message)?;
        let number = u32::try_from(number).ok()?;
        message.get_extension(number).map(|extension| extension.parent_file())
    }

    fn extensions_of(&self, message: &str) -> Option<Vec<i32>> {
        let message = self.pool.get_message_by_name(message)?;
        let numbers = message.extensions().map(|extension| extension.number());
        Some(numbers.filter_map(|number| i32::try_from(number).ok()).collect())
    }
}

/// The same protocol under two names.
macro_rules! reflection {
    ($version:ident) => {
        mod $version {
            use std::pin::Pin;

            use tokio_stream::Stream;
            use tonic::{Request, Response, Status, Streaming};
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest as Ask;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse as Answer;
            use tonic_reflection::pb::$version::server_reflection_server::ServerReflection;
            use tonic_reflection::pb::$version::{
                ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
                ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
            };

            use super::*;

            fn answer(reflection: &Reflection, ask: Option<&Ask>) -> Result<Answer, Status> {
                let fault = |error: &DescriptorError| Status::internal(error.to_string());
                let described = Described { pool: DESCRIBED.as_ref().map_err(fault)? };
                let file = |file: Option<FileDescriptor>| {
                    let file_descriptor_proto = vec![file?.encode_to_vec()];
                    Some(Answer::FileDescriptorResponse(FileDescriptorResponse {
                        file_descriptor_proto,
                    }))
                };
                let found = match ask {
                    Some(Ask::FileByFilename(name)) => file(described.pool.get_file_by_name(name)),
                    Some(Ask::FileContainingSymbol(symbol)) => file(described.file_of(symbol)),
                    Some(Ask::FileContainingExtension(of)) => {
                        file(described.file_of_extension(&of.containing_type, of.extension_number))
                    }
                    Some(Ask::AllExtensionNumbersOfType(message)) => {
                        described.extensions_of(message).map(|extension_number| {
                            Answer::AllExtensionNumbersResponse(ExtensionNumberResponse {
                                base_type_name: message.clone(),
                                extension_number,
                            })
                        })
                    }
                    Some(Ask::ListServices(_)) => {
                        let named = |name: &String| ServiceResponse { name: name.clone() };
                        let service = reflection.services.iter().map(named).collect();
                        Some(Answer::ListServicesResponse(ListServiceResponse { service }))
                    }
                    None => None,
                };
                Ok(found.unwrap_or_else(|| {
                    Answer::ErrorResponse(ErrorResponse {
                        error_code: Code::NotFound.into(),
                        error_message: "there is no such symbol or file".to_owned(),
                    })
                }))
            }

            #[tonic::async_trait]
            impl ServerReflection for Reflection {
                type ServerReflectionInfoStream =
                    Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;

                async fn server_reflection_info(
                    &self,
                    requests: Request<Streaming<ServerReflectionRequest>>,
                ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
                    let reflection = self.clone();
                    let answers = requests.into_inner().map(move |request| {
                        let request = request?;
                        let answer = answer(&reflection, request.message_request.as_ref())?;
                        Ok(ServerReflectionResponse {
                            valid_host: request.host.clone(),
                            message_response: Some(answer),
                            original_request: Some(request),
                        })
                    });
                    Ok(Response::new(Box::pin(answers)))
                }
            }
        }
    };
}

reflection!(v1);
reflection!(v1alpha);
