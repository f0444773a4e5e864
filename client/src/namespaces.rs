//! Namespaces: declared with limits and policies, and what becomes of those that are not.

use trefoil_proto::cluster::v1::{
    CreateNamespaceRequest, CreateNamespaceResponse, DeleteNamespaceRequest,
    GetNamespacePolicyRequest, GetNamespacePolicyResponse, GetNamespaceRequest,
    GetNamespaceResponse, ListNamespacesRequest, Namespace, NamespaceSettings,
    SetNamespacePolicyRequest, UnknownNamespaces, UpdateNamespaceRequest,
};

use crate::lock_view::{PAGE_SIZE, Page, page_of};
use crate::{Client, Error};

/// The namespaces of a cluster.
///
/// ```no_run
/// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
/// use trefoil_client::NamespaceSettings;
///
/// let settings = NamespaceSettings { sessions_max: 500, ..NamespaceSettings::default() };
/// client.namespaces().create("billing", settings).await?;
/// let billing = client.with_namespace("billing");
/// billing.cache().put("greeting", "hello").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Namespaces {
    client: Client,
}

impl Client {
    /// The namespaces of the cluster: which are declared, and with which limits.
    #[must_use]
    pub fn namespaces(&self) -> Namespaces {
        Namespaces::new(self.clone())
    }
}

impl Namespaces {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Declares a namespace (1 to 255 bytes); the same settings again are no error.
    ///
    /// # Errors
    /// INVALID_FIELD, NAMESPACE_EXISTS, LIMIT_REACHED; else see [`Error`].
    pub async fn create(
        &self,
        name: impl Into<String>,
        settings: NamespaceSettings,
    ) -> Result<CreateNamespaceResponse, Error> {
        let (name, settings) = (name.into(), Some(settings));
        self.client.call(CreateNamespaceRequest { name, settings, request_id: None }).await
    }

    /// Replaces all settings of a namespace, if it has this version; 0 stands for any.
    ///
    /// # Errors
    /// INVALID_FIELD, UNKNOWN_NAMESPACE, NAMESPACE_CHANGED; else see [`Error`].
    pub async fn update(
        &self,
        name: impl Into<String>,
        settings: NamespaceSettings,
        expected_version: u64,
    ) -> Result<Namespace, Error> {
        let request = UpdateNamespaceRequest {
            name: name.into(),
            settings: Some(settings),
            expected_version,
            request_id: None,
        };
        Ok(self.client.call(request).await?.namespace.unwrap_or_default())
    }

    /// A declared namespace, what it holds, and whether every shard knows its version.
    ///
    /// # Errors
    /// UNKNOWN_NAMESPACE; else see [`Error`].
    pub async fn get(&self, name: impl Into<String>) -> Result<GetNamespaceResponse, Error> {
        self.client.call(GetNamespaceRequest { name: name.into() }).await
    }

    /// Declared namespaces whose names begin with `prefix`: the first page, or the one after `page`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(
        &self,
        prefix: impl Into<String>,
        page: Option<String>,
    ) -> Result<Page<Namespace>, Error> {
        let request = ListNamespacesRequest {
            prefix: prefix.into(),
            page_size: PAGE_SIZE,
            page_token: page.unwrap_or_default(),
        };
        let listed = self.client.call(request).await?;
        Ok(page_of(listed.namespaces, listed.next_page_token))
    }

    /// Removes the declaration of a namespace without sessions, locks and queues, if it has this version; 0 stands for any.
    /// Cached values stay until their TTL or a delete.
    ///
    /// # Errors
    /// UNKNOWN_NAMESPACE, NAMESPACE_IN_USE, NAMESPACE_CHANGED; else see [`Error`].
    pub async fn delete(
        &self,
        name: impl Into<String>,
        expected_version: u64,
    ) -> Result<(), Error> {
        let name = name.into();
        let request = DeleteNamespaceRequest { name, expected_version, request_id: None };
        self.client.call(request).await.map(drop)
    }

    /// What becomes of namespaces that were not declared.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn policy(&self) -> Result<GetNamespacePolicyResponse, Error> {
        self.client.call(GetNamespacePolicyRequest {}).await
    }

    /// Says what becomes of namespaces that were not declared, if the policy has this version; 0 stands for any. Returns
    /// the new version.
    ///
    /// # Errors
    /// NAMESPACE_CHANGED; else see [`Error`].
    pub async fn set_policy(
        &self,
        unknown: UnknownNamespaces,
        expected_version: u64,
    ) -> Result<u64, Error> {
        let unknown = unknown.into();
        let request = SetNamespacePolicyRequest { unknown, expected_version, request_id: None };
        Ok(self.client.call(request).await?.version)
    }
}
