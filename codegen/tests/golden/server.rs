// Written by trefoil-codegen from the options in proto/.
/// Refuses bad fields, and fills in what may be left out.
///
/// # Errors
/// INVALID_FIELD, naming the field and the limit.
pub(super) fn check(operation: &mut Operation) -> Result<(), Refusal> {
    match operation {
        Operation::OpenGate(request) => request.check(),
        Operation::AwaitGate(request) => request.check(),
        Operation::GetGate(request) => request.check(),
    }
}

impl<S: Shards> Api<S> {
    /// Carries out what was checked and allowed.
    #[allow(clippy::too_many_lines, reason = "an arm for each operation")]
    pub(super) async fn dispatch(
        self: &Arc<Self>,
        context: &Context,
        operation: Operation,
    ) -> Result<Outcome, Refusal> {
        Ok(match operation {
            Operation::OpenGate(mut request) => {
                let slot = slot::of_locks(&request.namespace);
                let id = request.request_id.take();
                let decided = self.command(slot, id, Command::OpenGate(request), &context.ask).await?;
                Outcome::OpenGate(expect_answer!(decided, OpenGate)?)
            }
            Operation::AwaitGate(request) => Outcome::AwaitGate(self.await_gate(context, request).await?),
            Operation::GetGate(request) => {
                let slot = slot::of_locks(&request.namespace);
                let decided = self.query(slot, Query::GetGate(request), &context.ask).await?;
                Outcome::GetGate(expect_answer!(decided, GetGate)?)
            }
        })
    }
}

#[tonic::async_trait]
impl<S: Shards> trefoil_proto::lock::v1::gate_service_server::GateService for Unary<S> {
    async fn open_gate(
        &self,
        request: Request<trefoil_proto::lock::v1::OpenGateRequest>,
    ) -> Result<Response<trefoil_proto::lock::v1::OpenGateResponse>, Status> {
        match self.serve(request, Operation::OpenGate).await? {
            Outcome::OpenGate(response) => Ok(Response::new(response)),
            _ => Err(self.refuse(&other_answer(), false)),
        }
    }
    async fn await_gate(
        &self,
        request: Request<trefoil_proto::lock::v1::AwaitGateRequest>,
    ) -> Result<Response<trefoil_proto::lock::v1::AwaitGateResponse>, Status> {
        match self.serve(request, Operation::AwaitGate).await? {
            Outcome::AwaitGate(response) => Ok(Response::new(response)),
            _ => Err(self.refuse(&other_answer(), false)),
        }
    }
    async fn get_gate(
        &self,
        request: Request<trefoil_proto::lock::v1::GetGateRequest>,
    ) -> Result<Response<trefoil_proto::lock::v1::GetGateResponse>, Status> {
        match self.serve(request, Operation::GetGate).await? {
            Outcome::GetGate(response) => Ok(Response::new(response)),
            _ => Err(self.refuse(&other_answer(), false)),
        }
    }
    type WatchGatesStream = ServerStream<trefoil_proto::lock::v1::WatchGatesResponse>;

    async fn watch_gates(
        &self,
        mut request: Request<trefoil_proto::lock::v1::WatchGatesRequest>,
    ) -> Result<Response<Self::WatchGatesStream>, Status> {
        let caller = self.caller(&mut request, Method::WatchGates)?;
        let request = request.into_inner();
        let has_request_id = false;
        let stream = self.api.watch_gates(caller, request).await;
        stream.map(Response::new).map_err(|refusal| self.refuse(&refusal, has_request_id))
    }
}

/// Adds the unary services, each with the bounds that every one of them has.
pub(super) fn add_services<S: Shards>(routes: Routes, unary: &Unary<S>) -> Routes {
    routes
    .add_service(bounded!(trefoil_proto::lock::v1::gate_service_server::GateServiceServer::new(unary.clone())))
}
