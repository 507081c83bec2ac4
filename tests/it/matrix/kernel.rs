//! The cells of Kernel: its auth server, reading the webhook back, setting it; for a channel that is new, and for one that
//! was verified and is looked at again.

use std::time::Duration;

use aura_whatsapp_operator::{
    api::{WhatsAppChannel, conditions::Reason},
    sim::{dev::site, fault::Endpoint, kernel::ApiCall},
};
use serde_json::json;

use super::{ASKED, Dependency, LOOKS, Trouble, most_attempts, side_by_side, waits_too_short};
use crate::support::{Number, Recorder, SOON, Seen, Side, World, condition, kstatus, ready};

/// How a channel gets well again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heals {
    /// By itself, once the trouble is over.
    ByItself,
    /// When somebody changes something or asks for a look: the trouble looks like a mistake of a person.
    WhenAsked,
    /// By itself although the trouble lasts: what was sent has had its effect, and the next look finds that.
    Meanwhile,
}

/// One cell.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub at: Dependency,
    pub trouble: Trouble,
    /// What the channel's status says.
    pub reason: Reason,
    /// The calls that one attempt makes there: a token that was refused is fetched anew once.
    pub calls: usize,
    pub heals: Heals,
}

const fn cell(at: Dependency, trouble: Trouble, reason: Reason, heals: Heals) -> Cell {
    Cell {
        at,
        trouble,
        reason,
        calls: 1,
        heals,
    }
}

/// A cell whose call is made once more with a new token.
const fn twice(cell: Cell) -> Cell {
    Cell { calls: 2, ..cell }
}

use Dependency::{KernelAuth, WebhookGet, WebhookSet};
use Heals::{ByItself, Meanwhile, WhenAsked};
use Trouble::{
    BreaksMidBody, Drips, Forbidden, Garbage, Hangs, Limited, LimitedFor, NotFound, Refused, ServerError,
    Unauthorized,
};

pub const CELLS: &[Cell] = &[
    cell(KernelAuth, Refused, Reason::UpstreamUnavailable, ByItself),
    cell(KernelAuth, Hangs, Reason::UpstreamTimeout, ByItself),
    cell(KernelAuth, Limited, Reason::RateLimited, ByItself),
    cell(KernelAuth, LimitedFor, Reason::RateLimited, ByItself),
    cell(KernelAuth, ServerError, Reason::UpstreamUnavailable, ByItself),
    cell(KernelAuth, Unauthorized, Reason::CredentialsRejected, WhenAsked),
    cell(KernelAuth, Forbidden, Reason::PermissionDenied, WhenAsked),
    cell(KernelAuth, NotFound, Reason::InvalidResponse, ByItself),
    cell(KernelAuth, Garbage, Reason::InvalidResponse, ByItself),
    cell(KernelAuth, Drips, Reason::UpstreamTimeout, ByItself),
    cell(KernelAuth, BreaksMidBody, Reason::UpstreamUnavailable, ByItself),
    cell(WebhookGet, Refused, Reason::UpstreamUnavailable, ByItself),
    cell(WebhookGet, Hangs, Reason::UpstreamTimeout, ByItself),
    cell(WebhookGet, Limited, Reason::RateLimited, ByItself),
    cell(WebhookGet, LimitedFor, Reason::RateLimited, ByItself),
    cell(WebhookGet, ServerError, Reason::UpstreamUnavailable, ByItself),
    // Its auth server has just issued the token: its two halves are at odds, and the client is not at fault.
    twice(cell(
        WebhookGet,
        Unauthorized,
        Reason::UpstreamUnavailable,
        ByItself,
    )),
    cell(WebhookGet, Forbidden, Reason::PermissionDenied, WhenAsked),
    // A Kernel that can't be read back is no trouble: the webhook is set, and that it was not verified is said.
    cell(WebhookGet, NotFound, Reason::Succeeded, WhenAsked),
    cell(WebhookGet, Garbage, Reason::InvalidResponse, ByItself),
    cell(WebhookGet, Drips, Reason::UpstreamTimeout, ByItself),
    cell(WebhookGet, BreaksMidBody, Reason::UpstreamUnavailable, ByItself),
    cell(WebhookSet, Hangs, Reason::UpstreamTimeout, ByItself),
    cell(WebhookSet, Limited, Reason::RateLimited, ByItself),
    cell(WebhookSet, LimitedFor, Reason::RateLimited, ByItself),
    cell(WebhookSet, ServerError, Reason::UpstreamUnavailable, ByItself),
    twice(cell(
        WebhookSet,
        Unauthorized,
        Reason::UpstreamUnavailable,
        ByItself,
    )),
    cell(WebhookSet, Forbidden, Reason::PermissionDenied, WhenAsked),
    cell(WebhookSet, NotFound, Reason::UpstreamUnavailable, ByItself),
    cell(WebhookSet, Garbage, Reason::InvalidResponse, ByItself),
    cell(WebhookSet, Drips, Reason::UpstreamTimeout, Meanwhile),
    cell(WebhookSet, BreaksMidBody, Reason::UpstreamUnavailable, Meanwhile),
];

/// How long a cell is watched for too many calls.
const WINDOW: Duration = Duration::from_millis(2500);

impl Cell {
    fn environment(&self) -> String {
        format!("{:?}-{:?}", self.at, self.trouble).to_lowercase()
    }

    fn digits(&self) -> String {
        let place = CELLS
            .iter()
            .position(|cell| (cell.at, cell.trouble) == (self.at, self.trouble));
        format!("{}", 3001 + place.unwrap())
    }

    fn endpoint(&self) -> Endpoint {
        match self.at {
            KernelAuth => Endpoint::Token,
            WebhookSet => Endpoint::WebhookSet,
            _ => Endpoint::WebhookGet,
        }
    }

    fn door(&self) -> Option<Side> {
        let side = if self.at == KernelAuth {
            Side::Auth
        } else {
            Side::Api
        };
        (self.trouble == Refused).then_some(side)
    }

    async fn begin(&self, world: &World, client: &str) {
        match self.trouble.fault() {
            None => world.door(&self.environment()).shut().await,
            Some(fault) => world.kernel.inject(fault.on(self.endpoint()).only_for(client)),
        }
    }

    async fn end(&self, world: &World, client: &str) {
        match self.trouble.fault() {
            None => world.door(&self.environment()).open().await,
            Some(_) => world.kernel.clear_faults_for(client),
        }
    }

    /// The calls made there for this client.
    fn seen(&self, world: &World, client: &str) -> Vec<ApiCall> {
        let is =
            |call: &ApiCall| call.endpoint == self.endpoint() && call.client_id.as_deref() == Some(client);
        world.kernel.calls().into_iter().filter(is).collect()
    }

    /// How many calls were made. A refused connection is seen by nobody but the caller: its metric counts it, and no
    /// other cell's calls are of that operation and result.
    async fn count(&self, world: &World, client: &str) -> usize {
        if self.trouble != Refused {
            return self.seen(world, client).len();
        }
        let operation = if self.at == KernelAuth {
            "token"
        } else {
            "webhook_get"
        };
        let (_, page) = site::get(world.site.controller_admin, "/metrics").await.unwrap();
        page.lines()
            .filter(|line| line.starts_with("aura_whatsapp_kernel_calls_total{"))
            .filter(|line| line.contains(&format!("operation=\"{operation}\"")))
            .filter(|line| line.contains("result=\"unreachable\""))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
            .sum()
    }

    async fn run(&self, world: &World) {
        let number = Number::new(&self.digits());
        let client = number.client_id.as_str();
        let mut recorder = Recorder::start(world, &number).await;
        self.begin(world, client).await;
        let began = std::time::Instant::now();
        let environment = self.environment();
        let added = world.add(&number.digits, |channel| {
            channel["spec"]["environment"] = json!(environment);
        });
        // The same name and client, with the channelId that was applied.
        let number = added.await;
        self.says_what_is_wrong(world, &number).await;
        if self.heals == Meanwhile {
            // It says so for a moment only.
            recorder.caught_up(&world.wait_ready(&number).await).await;
            let said = |seen: &Seen| {
                let ready = kstatus::condition(&seen.object, "Ready");
                ready.is_some_and(|ready| ready["reason"] == self.reason.as_str())
            };
            assert!(recorder.seen().iter().any(said), "{:#?}", recorder.seen());
            assert_eq!(world.kernel.webhook_sets(client), 1, "it is found, not set again");
            return;
        }
        self.says_what_is_wrong(world, &number).await;
        self.tries_again_as_it_should(world, client, began).await;

        self.end(world, client).await;
        if self.heals == WhenAsked {
            world.look_now(&number, "the-trouble-is-over").await;
        }
        let channel = world.wait_ready(&number).await;
        assert_eq!(condition(&channel, "WebhookVerified").0, "True");
        assert_eq!(condition(&channel, "Stalled").0, "");
        assert_eq!(condition(&channel, "Reconciling").0, "");
    }

    /// The same befalls a channel whose webhook was verified, while a look at it is asked for.
    async fn run_verified(&self, world: &World) {
        let number = Number::new(&self.digits());
        let client = number.client_id.as_str();
        let mut recorder = Recorder::start(world, &number).await;
        let environment = self.environment();
        let number = world
            .add(&number.digits, |channel| {
                channel["spec"]["environment"] = json!(environment);
            })
            .await;
        world.wait_ready(&number).await;
        if self.at == KernelAuth {
            // Else the token of before would do.
            world.kernel.revoke_tokens(client);
        }
        // It could be read back before: that it can't be now is a trouble like others.
        let heals = if self.reason.is_good() {
            ByItself
        } else {
            self.heals
        };
        let before = self.count(world, client).await;
        self.begin(world, client).await;
        let began = std::time::Instant::now();
        let channel = world.look_now(&number, "while-it-lasts").await;
        match heals {
            WhenAsked => {
                self.says_what_is_wrong(world, &number).await;
                let made = self.count(world, client).await - before;
                assert_eq!(made, self.calls, "a person's mistake is not tried again");
            }
            _ => {
                assert_eq!(ready(&channel).0, "True", "{:?}", ready(&channel));
                assert_eq!(
                    condition(&channel, "WebhookVerified").0,
                    "True",
                    "one look may fail"
                );
                let missed = |channel: &WhatsAppChannel| condition(channel, "WebhookVerified").0 == "Unknown";
                let channel = world.wait_for(&number, "not to be verified", missed).await;
                let told = condition(&channel, "WebhookVerified").1;
                assert_eq!(told, Reason::UpstreamUnavailable.as_str());
                let (made, within) = (self.count(world, client).await - before, began.elapsed());
                let most = most_attempts(within, Duration::from_millis(500), Duration::from_secs(30));
                assert!(
                    (LOOKS * self.calls..=most * self.calls).contains(&made),
                    "{made} calls within {within:?}, which should be {LOOKS} to {most} attempts"
                );
                if self.trouble == LimitedFor {
                    let calls = self.seen(world, client).split_off(before);
                    let calls: Vec<_> = calls.iter().map(|call| call.at).collect();
                    let short = waits_too_short(&calls);
                    assert!(
                        short.is_empty(),
                        "asked again after {short:?}, told to wait {ASKED} s"
                    );
                }
            }
        }

        self.end(world, client).await;
        if heals == WhenAsked {
            world.look_now(&number, "the-trouble-is-over").await;
        }
        let healed = |channel: &WhatsAppChannel| {
            ready(channel).0 == "True" && condition(channel, "WebhookVerified").0 == "True"
        };
        let channel = world.wait_for(&number, "to be verified again", healed).await;
        if heals != WhenAsked {
            recorder.caught_up(&channel).await;
            let red = recorder
                .seen()
                .into_iter()
                .filter_map(|seen| kstatus::condition(&seen.object, "Ready").cloned())
                .skip_while(|ready| ready["status"] != "True")
                .find(|ready| ready["status"] != "True");
            assert_eq!(red, None, "what is registered stays so");
            assert_eq!(world.kernel.webhook_sets(client), 1);
        }
    }

    async fn says_what_is_wrong(&self, world: &World, number: &Number) {
        let channel = world.wait_reason(number, self.reason).await;
        if self.reason.is_good() {
            assert_eq!(ready(&channel).0, "True");
            assert_eq!(
                condition(&channel, "WebhookVerified").1,
                Reason::ReadBackUnsupported.as_str()
            );
            return;
        }
        assert_eq!(ready(&channel).0, "False");
        let stalled = self.heals == WhenAsked;
        assert_eq!(condition(&channel, "Stalled").0 == "True", stalled);
        assert_eq!(condition(&channel, "Reconciling").0 == "True", !stalled);
        let credentials = condition(&channel, "CredentialsValid").0;
        assert_eq!(
            credentials == "True",
            self.at != KernelAuth,
            "CredentialsValid is {credentials}"
        );
    }

    async fn tries_again_as_it_should(&self, world: &World, client: &str, began: std::time::Instant) {
        if self.heals == ByItself {
            let again = async {
                while self.count(world, client).await < 2 * self.calls {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(SOON, again)
                .await
                .expect("it is tried again");
        }
        tokio::time::sleep(WINDOW.saturating_sub(began.elapsed())).await;
        let (count, within) = (self.count(world, client).await, began.elapsed());
        let attempts = match self.heals {
            ByItself => most_attempts(within, Duration::from_millis(500), Duration::from_secs(30)),
            _ => 1,
        };
        assert!(
            count <= attempts * self.calls,
            "{count} calls within {within:?}, which should be {attempts} attempts at most"
        );
        assert!(count >= self.calls, "{count} calls: there was no attempt");
        if self.trouble == LimitedFor {
            let calls: Vec<_> = self.seen(world, client).iter().map(|call| call.at).collect();
            let short = waits_too_short(&calls);
            assert!(
                short.is_empty(),
                "asked again after {short:?}, told to wait {ASKED} s"
            );
        }
    }
}

/// A world with an environment for each of these cells.
async fn world_of(name: &'static str, cells: impl Iterator<Item = &Cell>) -> World {
    let builder = World::builder(name).kernel_timeout("1s").without_bridge();
    cells
        .fold(builder, |builder, cell| {
            builder.environment(&cell.environment(), cell.door())
        })
        .start()
        .await
}

fn was_not_restarted(world: &World) {
    let controller = world.controller.as_ref().unwrap();
    assert!(controller.try_wait().unwrap().is_none(), "it was not restarted");
}

#[tokio::test]
async fn each_trouble_with_kernel_is_told_tried_again_politely_and_healed() {
    let world = world_of("matrix-kernel", CELLS.iter()).await;
    side_by_side(CELLS.iter().map(|cell| (cell, cell.run(&world)))).await;
    was_not_restarted(&world);
}

#[tokio::test]
async fn each_trouble_with_a_look_at_a_verified_webhook_leaves_it_ready_unless_a_person_made_it() {
    // A look at a webhook that is right sets nothing.
    let cells = || CELLS.iter().filter(|cell| cell.at != WebhookSet);
    let world = world_of("matrix-verified", cells()).await;
    side_by_side(cells().map(|cell| (cell, cell.run_verified(&world)))).await;
    was_not_restarted(&world);
}
