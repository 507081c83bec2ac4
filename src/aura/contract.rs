//! Everything that this program assumes about Aura, in one place, each with where it is known from.

/// The kind of channel that an activity names. Documented: Aura's examples of activities.
pub const CHANNEL_KIND: &str = "directline";
/// The names of the reply routes' parameters follow Bot Framework: a bot answers to `serviceUrl`
/// (`{serviceUrl}/v3/conversations/{conversationId}/activities[/{activityId}]`). *Unknown* whether Aura adds to it.
pub const REPLY_ROUTE: &str = "/v3/conversations/{conversationId}/activities";
/// The content type of a card with buttons. Documented: Aura's page on the WhatsApp converter.
pub const HERO_CARD: &str = "application/vnd.microsoft.card.hero";
/// The header that lets Aura recognise a second attempt. *Unknown* whether Aura looks at it; the activity's id is
/// the same as well.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The name of an event activity that tells what became of a message. That the bridge sends events for errors is
/// documented (Aura's page on the bridge's errors); their shape is *unknown*. Ours: `type: event`, this name,
/// `replyToId` with the id that Aura has for its reply, `value` with what the bridge made of the status
/// ([`StatusValue`](super::StatusValue)), and the status as WhatsApp sent it in `channelData.payload.whatsapp`, as for
/// a message.
pub const STATUS_EVENT: &str = "whatsapp.status";
/// Largest reply that is taken, in bytes.
pub const MAX_REPLY: usize = 1 << 20;
